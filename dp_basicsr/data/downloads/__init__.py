"""Fetching data sets: where they are, a download that resumes, and unpacking that stays in its folder."""
