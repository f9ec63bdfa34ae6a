"""What is written about runs: figures, tables, and a page that holds everything."""
