"""Turn a table into a tuned, evaluated and registered network in reproducible stages."""
