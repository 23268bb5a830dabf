"""One page and its pictures from runs, evaluations, probes and studies; `page.write_report` is the way in."""
