"""What a run leaves for people: `summary.json`, one HTML page, tables for the terminal."""
