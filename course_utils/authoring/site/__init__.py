"""The course as a web page: executed lessons, decks, glossary, exercises and API become one folder of HTML."""
