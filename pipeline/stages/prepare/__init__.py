"""Learn the schema, split the rows, fit the preprocessor."""
