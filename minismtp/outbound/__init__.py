"""Mail to other servers, and to mailboxes that could not take it at once."""
