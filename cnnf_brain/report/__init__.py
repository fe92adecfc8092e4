"""Pages of runs: ``runs`` is what a page shows, ``page`` the HTML file, ``readers`` finds in a run's folder what its page shows."""

PAGE = "report.html"  # beside the tables of every run
