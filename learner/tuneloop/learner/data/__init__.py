"""Rows of files, datasets and exports as samples."""
