#!/bin/sh
# Ask, judge, compare and look, with nothing but curl.
set -eu

url=${TUNELOOP_URL:-http://127.0.0.1:8000}
key="authorization: Bearer ${TUNELOOP_API_KEY:-none}"
json="content-type: application/json"

call() { # call METHOD PATH [BODY]
    curl --silent --show-error --fail-with-body -H "$key" -H "$json" -X "$1" "$url$2" ${3:+-d "$3"}
}
# The first "id" of an answer is the completion's.
id_of() { sed -E 's/.*"id": ?"([^"]+)".*/\1/'; }

question='{"model": "tuneloop", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}'

echo "An answer:"
answer=$(call POST /v1/chat/completions "$question")
echo "$answer"
first=$(printf %s "$answer" | id_of)

echo "The same as a stream:"
curl --silent --show-error --fail-with-body --no-buffer -H "$key" -H "$json" "$url/v1/chat/completions" \
    -d '{"model": "tuneloop", "stream": true, "messages": [{"role": "user", "content": "Hello!"}]}'

echo "A thumb; sent twice under an id of our own, it counts once:"
thumb="{\"id\": \"curl-$first\", \"kind\": \"thumb\", \"completion_id\": \"$first\", \"value\": \"up\"}"
call POST /v1/feedback "$thumb" && echo
call POST /v1/feedback "$thumb" && echo

echo "A second answer, preferred to the first:"
second=$(call POST /v1/chat/completions "$question" | id_of)
call POST /v1/feedback "{\"kind\": \"comparison\", \"chosen\": \"$second\", \"rejected\": [\"$first\"]}" && echo

echo "What it should have said:"
call POST /v1/feedback "{\"kind\": \"demonstration\", \"completion_id\": \"$first\", \"text\": \"Rayleigh scattering.\"}" && echo

echo "The thumb is taken back:"
call DELETE "/v1/feedback/curl-$first" && echo

echo "Which versions there are:"
call GET "/v1/policies?limit=3" && echo
