"""Which widths each engine likes: tables of measured times, and how they are measured."""
