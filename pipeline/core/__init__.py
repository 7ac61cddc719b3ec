"""Parameters, errors, files and plots, without anything else of this package."""
