"""What runs write, and the pages that show it: comparison.py, readers.py, page.py."""

PAGE = "report.html"  # beside the tables of every run
