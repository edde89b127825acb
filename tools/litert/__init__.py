"""Makes the `.litertlm` fixtures with Google's own exporter, quantizer and packer."""
