"""What lies on disk: files that are whole or not there, tables, and the RUN folder."""
