"""Presentation of results: figures, tables as Markdown and HTML, findings in sentences, and one page with all of it."""
