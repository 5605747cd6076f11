"""Reports: one page of HTML for what lies in a folder of results, which needs nothing beside itself."""

#: The file of HTML, in the folder of the records of runs.
NAME = "report.html"
