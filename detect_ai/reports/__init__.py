"""HTML reports and the model card: dictionaries in, one self-contained page or Markdown file out."""
