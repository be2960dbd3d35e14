#!/bin/sh
# Joins the fleet on the first start, then runs the agent as the container's only process.
set -eu
state=${POCKETFLEET_AGENT_STATE_DIR:?is the folder of the agent}
if [ ! -e "$state/agent.toml" ]; then
  pocketfleet-agent init \
    --server "${POCKETFLEET_AGENT_SERVER:?is the address of the control plane}" \
    --provisioning-key "$(cat /agents/provisioning_key)" \
    --root /agents/root.json \
    --name "${POCKETFLEET_AGENT_NAME:?is what operators see}" \
    --profile "${POCKETFLEET_AGENT_PROFILE:?is the emulated hardware}"
fi
exec pocketfleet-agent run
