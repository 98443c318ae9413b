"""Audits: how much privacy a run can be shown to lose, against what its ledgers say. They refute a claim; they never prove one."""
