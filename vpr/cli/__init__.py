"""The command line: every flag, which mode reads it, and the options of a call."""
