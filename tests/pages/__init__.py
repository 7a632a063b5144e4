"""Scripts that write pages of docs/, one by the page's name each. No tests here: others hold the pages to them."""
