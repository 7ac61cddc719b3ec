"""Read source tables from files, URLs and packages."""
