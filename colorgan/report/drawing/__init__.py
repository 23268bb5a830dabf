"""Charts, figures and images of the report."""
