"""Report results: tables, figures, and runs in MLflow."""
