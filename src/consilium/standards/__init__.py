"""Names and codes of the field: AAPM TG-263 structure names with synonyms, SNOMED codes."""
