"""What an operator may ask a replica, with a key of the scope `admin`; without keys, anybody on this machine."""

from __future__ import annotations

import os
import time

from fastapi import APIRouter
from pydantic import BaseModel, Field

from serve_app.api import openapi
from serve_app.auth.access import ADMIN, AccessControl
from serve_app.auth.api_keys import Scope
from serve_app.engine.versions import Traffic


class KeyInfo(BaseModel):
    """A key, without anything that opens."""

    id: str
    name: str
    scopes: list[Scope]


class Status(BaseModel):
    """One replica, at this moment."""

    pid: int
    uptime_s: float
    model_version: str
    canary: str | None = Field(description="Version that answers a share of the callers")
    canary_share: float
    shadow: str | None = Field(description="Version that judges and never answers")
    waiting_tokens: int = Field(description="Tokens that wait for the model")
    keys: list[KeyInfo]


def admin_routes(traffic: Traffic, access: AccessControl) -> APIRouter:
    """Routes under `/v1/admin/`."""
    router, started = APIRouter(), time.monotonic()

    @router.get(f"{ADMIN}status", responses=openapi.STATUS)
    async def status() -> Status:
        """The replica that answers."""
        return Status(
            pid=os.getpid(),
            uptime_s=round(time.monotonic() - started, 1),
            model_version=traffic.main.detector.version,
            canary=traffic.canary.detector.version if traffic.canary else None,
            canary_share=traffic.canary_share,
            shadow=traffic.shadow.detector.version if traffic.shadow else None,
            waiting_tokens=sum(service.batcher.waiting_tokens for service in traffic.services),
            keys=[
                KeyInfo(id=key.id, name=key.name, scopes=sorted(key.scopes))
                for key in access.ring.keys.values()
                if key.is_valid
            ],
        )

    return router
