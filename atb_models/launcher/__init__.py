"""run_pa: MindIE's launcher command line on this engine. Nothing here is imported by the layers below."""
