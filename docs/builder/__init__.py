"""What builds the site beside the pages: links, formulas, the reference of the API and of the commands, pictures."""
