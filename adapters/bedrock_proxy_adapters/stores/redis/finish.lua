-- The row if it is absent, then the settlement if the lease is there. See
-- bedrock_proxy.accounts.enter; rows are kept as leases are, figures first.
-- KEYS: customer, gate, leases, deadlines, rows, the day's ledger
-- ARGV: time, request id, admitted at, the day of the sixth key, state, tokens, cost or '',
--       corrected at or '', the row, and '' or the deadline that the lease must still have
-- Returns 'done'; 'kept' where the deadline has moved; 'day' and the day whose ledger it needs.

local settled_at = time_of(ARGV[1])
local id = ARGV[2]
local held = redis.call('HGET', KEYS[3], id)
local lease = held and load_lease(held)
if ARGV[10] ~= '' then
    local deadline = held and redis.call('ZSCORE', KEYS[4], id)
    if not deadline or tonumber(deadline) ~= tonumber(ARGV[10]) then return {'kept'} end
end
local since = redis.call('ZSCORE', KEYS[5], id)
local admitted_at = tonumber(since or (lease and lease.at) or ARGV[3])
if day_of(admitted_at) ~= tonumber(ARGV[4]) then return {'day', whole(day_of(admitted_at))} end

local old
if since then
    local h = head_of(redis.call('HGET', KEYS[6], id))
    old = {state = h[3], tokens = h[4], cost = h[5]}
end
local row = {state = ARGV[5], tokens = tonumber(ARGV[6]), cost = tonumber(ARGV[7]) or 0}
local corrected_at = ARGV[8] == '' and 'null' or ARGV[8]
if old then
    if old.state == 'estimated' and row.state == 'final' then
        corrected_at = whole(settled_at)
    else
        row = nil
    end
end

if row then
    local head = '[' .. whole(admitted_at) .. ',' .. corrected_at .. ',"' .. row.state .. '",'
        .. whole(row.tokens) .. ',' .. whole(row.cost) .. ']'
    redis.call('HSET', KEYS[6], id, head .. '\n' .. ARGV[9])
    redis.call('ZADD', KEYS[5], whole(admitted_at), id)
end
if lease or row then
    local state = load_state(redis.call('GET', KEYS[2]))
    if lease then
        local standing = row or old
        local now = math.max(state.clock, settled_at)
        local more = standing.tokens - lease.tokens
        local limits = redis.call('HGET', KEYS[1], 'limits')
        local rate = limits and cjson.decode(limits).tokens_per_minute
        if more <= 0 then
            state.tokens = refund(state.tokens, lease.of_tokens, -more, now)
        elseif rate and rate ~= 0 then
            local bucket = state.tokens
            state = rolled(state, now)
            state.tokens = take(drained(bucket, rate, now), more, now)
        end
        state = recount(state, lease.at, 0, more, standing.cost - lease.cost)
    elseif old then
        state = recount(state, admitted_at, 0, row.tokens - old.tokens, row.cost - old.cost)
    else
        state = recount(state, admitted_at, 1, row.tokens, row.cost)
    end
    redis.call('SET', KEYS[2], dump_state(state))
end
if lease then
    redis.call('HDEL', KEYS[3], id)
    redis.call('ZREM', KEYS[4], id)
end
return {'done'}
