"""The life of a federation: period after period in one folder, what it has come to, and a table of ways to keep what was learnt."""
