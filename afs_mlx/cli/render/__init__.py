"""All of what a person sees: tables, progress, reports. Answers go to stdout, everything else to stderr."""
