"""Records in, tables out. A report opens no model and imports no torch."""
