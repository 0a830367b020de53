"""The benchmark: ratios of measured speed, each beside what a user would pick instead, taken in one run."""
