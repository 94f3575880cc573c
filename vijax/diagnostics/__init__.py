"""Whether it worked: numbers read off the draws, and a verdict."""

from vijax.diagnostics._arviz import to_arviz
from vijax.diagnostics._calibration import Calibration, vsbc
from vijax.diagnostics._chains import rhat
from vijax.diagnostics._collapse import Collapse, activity, collapse, latent_kl
from vijax.diagnostics._evidence import Measured, Sandwich, evidence, sandwich
from vijax.diagnostics._gaps import Gaps, gaps
from vijax.diagnostics._latents import marginal_khat
from vijax.diagnostics._members import Members, summarize_members
from vijax.diagnostics._moments import Corrected, moments
from vijax.diagnostics._predictive import predictive
from vijax.diagnostics._summarize import summarize
from vijax.diagnostics._summary import Summary
from vijax.diagnostics._surgery import Surgery, surgery
from vijax.diagnostics._verdict import verdict
from vijax.diagnostics._weights import ess, khat, psis, resolution

__all__ = [
    "Calibration",
    "Collapse",
    "Corrected",
    "Gaps",
    "Measured",
    "Members",
    "Sandwich",
    "Summary",
    "Surgery",
    "activity",
    "collapse",
    "ess",
    "evidence",
    "gaps",
    "khat",
    "latent_kl",
    "marginal_khat",
    "moments",
    "predictive",
    "psis",
    "resolution",
    "rhat",
    "sandwich",
    "summarize",
    "summarize_members",
    "surgery",
    "to_arviz",
    "verdict",
    "vsbc",
]
