"""The parts that every handler uses: settings, ids, the bus and a channel to each service."""

import asyncio
from dataclasses import dataclass

import grpc
from fastapi import Request

from tuneloop.bus import Bus
from tuneloop.gateway.canary import CanaryReplica
from tuneloop.gateway.completion_ids import CompletionIds
from tuneloop.gateway.edge.costs import Costs
from tuneloop.gateway.edge.quotas import Book, flush_regularly
from tuneloop.gateway.feedback.admission import SIGNAL_BOUNDS, Admission
from tuneloop.gateway.replicas import GenerationReplicas
from tuneloop.gateway.responses.conversations import Conversations
from tuneloop.gateway.settings import GatewaySettings
from tuneloop.rpc.channel import connect_to
from tuneloop.v1 import generation_pb2_grpc, learner_pb2_grpc, reward_pb2_grpc

CONTROL_TIMEOUT = 5.0
"""Seconds for calls that only read or control."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """The parts that handlers share; the data is in the services behind them."""

    settings: GatewaySettings
    ids: CompletionIds
    bus: Bus
    channels: tuple[grpc.aio.Channel, ...]
    replicas: GenerationReplicas
    """Generation, by session; the two that follow are theirs."""
    generation_channel: grpc.aio.Channel
    generation: generation_pb2_grpc.GenerationServiceStub
    reward: reward_pb2_grpc.RewardServiceStub
    learner: learner_pb2_grpc.LearnerServiceStub
    admission: Admission
    """Bounds what is stored for each completion, user and key."""
    signal_admission: Admission
    """The same of signals."""
    conversations: Conversations
    """What `previous_response_id` may name."""
    costs: Costs
    """What answers cost."""
    canary: CanaryReplica | None
    """The canary's own replica, with full weights."""

    async def watch(self) -> None:
        """Look at how full the stream is, and drop old conversations, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.admission.watch())
            group.create_task(self.conversations.watch())

    async def store_usage(self, book: Book, stop: asyncio.Event) -> None:
        """Store what keys used and what that cost regularly, and once more when `stop` is set."""
        await flush_regularly((book.flush, self.costs.flush), self.bus, stop)

    async def close(self) -> None:
        """Close the channels. The caller closes the bus."""
        await self.replicas.close()
        for channel in self.channels:
            await channel.close()
        if self.canary is not None:
            await self.canary.close()


def open_gateway(settings: GatewaySettings, bus: Bus) -> Gateway:
    """Connect to the services; call it inside the event loop. Nothing needs to be up yet."""
    replicas = GenerationReplicas(settings)
    reward = connect_to(settings, settings.reward_address)
    learner = connect_to(settings, settings.learner_address)
    ids = CompletionIds(settings.secret_bytes())
    anonymous = ids.user_hash(settings.tenant, None)
    return Gateway(
        settings=settings,
        ids=ids,
        bus=bus,
        channels=(reward, learner),
        replicas=replicas,
        generation_channel=replicas.channel,
        generation=replicas.stub,
        reward=reward_pb2_grpc.RewardServiceStub(reward),
        learner=learner_pb2_grpc.LearnerServiceStub(learner),
        admission=Admission(bus, anonymous),
        signal_admission=Admission(bus, anonymous, events="signals", bounds=SIGNAL_BOUNDS),
        conversations=Conversations(),
        costs=Costs(settings.policy, settings.prices.get(settings.policy)),
        canary=CanaryReplica(connect_to(settings, settings.canary_address), bus, settings.policy)
        if settings.canary_address
        else None,
    )


def gateway_of(request: Request) -> Gateway:
    """Return the parts, for a handler."""
    gateway: Gateway = request.app.state.gateway
    return gateway
