"""File formats that several data sets share: Parquet rows, plain pickles, repositories of a hub."""
