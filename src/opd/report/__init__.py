"""The report: what a run keeps of single tokens while it trains, and the page that shows it."""
