"""Rendered first-person indoor views ("habitat") with exact captions: a small vision-language data set."""
