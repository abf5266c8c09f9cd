"""What a reader sees: tables, figures, and runs in MLflow."""
