"""Records in and out of files, readers of real data sets, the embedded corpus."""
