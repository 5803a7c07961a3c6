"""The plugins that come with minismtp, installed as `minismtp_plugins`: one small file each."""
