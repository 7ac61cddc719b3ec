"""From a table to a tuned, evaluated and registered network, in stages that repeat."""
