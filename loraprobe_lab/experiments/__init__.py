"""The experiments: worlds are built, systems are asked, and a page says what was found."""
