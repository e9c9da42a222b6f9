"""Live progress, tables, plots and reports, computed from the rows that a run writes."""
