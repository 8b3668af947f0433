"""Learning on the node: adapting an encoder to local documents, and measuring whether it helped."""

from __future__ import annotations
