"""One Audit -> JSON, terminal, model card. A report is a pure function of the audit."""
