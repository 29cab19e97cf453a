"""Which adapters keep their skills in one merge: forecast from each one alone, and proved."""
