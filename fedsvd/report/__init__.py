"""What people look at: live progress, tables and plots, made from a run's rows."""
