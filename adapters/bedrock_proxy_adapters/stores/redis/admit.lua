-- Check and reserve against every limit at once. See bedrock_proxy.ports.Gate.admit.
-- KEYS: customer, gate, leases, deadlines, rows
-- ARGV: time, request id, key id, tokens, cost or '', lease in ms, the request
-- Returns what the decision was made from, so that the caller can put it into words.

local KNOWN = {
    requests_per_minute = true, burst = true, tokens_per_minute = true, concurrency = true,
    requests_per_day = true, tokens_per_day = true, tokens_per_month = true,
    cost_per_day = true, cost_per_month = true,
}

local function fits(cap, used, asked)
    return not cap or (cap ~= 0 and used + asked <= cap)
end

-- The state after, and the lease; nil where a limit refuses.
local function decide(state, limits, tokens, cost, live, at)
    for name in pairs(limits) do
        -- A limit of a later version must not be taken for none.
        if not KNOWN[name] then return nil end
    end
    if cost == '' and (limits.cost_per_day or limits.cost_per_month) then return nil end
    local price = cost == '' and 0 or tonumber(cost)
    local now = rolled(state, at)
    local requests_bucket, of_requests = try_take(
        now.requests, limits.requests_per_minute, limits.burst or limits.requests_per_minute,
        1, now.clock)
    if not requests_bucket then return nil end
    local tokens_bucket, of_tokens = try_take(
        now.tokens, limits.tokens_per_minute, limits.tokens_per_minute, tokens, now.clock)
    if not tokens_bucket then return nil end
    if limits.concurrency and live >= limits.concurrency then return nil end
    if not (fits(limits.requests_per_day, now.day_requests, 1)
            and fits(limits.tokens_per_day, now.day_tokens, tokens)
            and fits(limits.tokens_per_month, now.month_tokens, tokens)
            and fits(limits.cost_per_day, now.day_cost, price)
            and fits(limits.cost_per_month, now.month_cost, price)) then
        return nil
    end
    if tokens > TOP - now.month_tokens then return nil end
    now.requests, now.tokens = requests_bucket, tokens_bucket
    now.day_requests, now.month_requests = now.day_requests + 1, now.month_requests + 1
    now.day_tokens, now.month_tokens = now.day_tokens + tokens, now.month_tokens + tokens
    now.day_cost, now.month_cost = now.day_cost + price, now.month_cost + price
    return now, {
        at = now.clock, tokens = tokens, cost = price,
        of_requests = of_requests, of_tokens = of_tokens,
    }
end

local at = time_of(ARGV[1])
local id = ARGV[2]
local customer = redis.call('HMGET', KEYS[1], 'status', 'limits', 'key:' .. ARGV[3])
local status, limits_text, key_text = customer[1], customer[2], customer[3]
local state_text = redis.call('GET', KEYS[2])
local state = load_state(state_text)
local live = redis.call('ZCOUNT', KEYS[4], '(' .. whole(math.max(state.clock, at)), '+inf')
local held = redis.call('HGET', KEYS[3], id)
local deadline = held and redis.call('ZSCORE', KEYS[4], id)
local overdue = redis.call('ZCOUNT', KEYS[4], '-inf', whole(at))
local verdict = 'refused'

local function is_barred()
    if not key_text then return true end
    local expires_at = cjson.decode(key_text)[3]
    return (expires_at ~= cjson.null and expires_at <= at) or status ~= 'active'
end

if held then
    verdict = 'held'
elseif redis.call('ZSCORE', KEYS[5], id) then
    verdict = 'settled'
elseif not is_barred() then
    local after, lease = decide(
        state, cjson.decode(limits_text), tonumber(ARGV[4]), ARGV[5], live, at)
    if after then
        verdict = 'granted'
        redis.call('SET', KEYS[2], dump_state(after))
        redis.call('HSET', KEYS[3], id, dump_lease(lease, ARGV[7]))
        redis.call('ZADD', KEYS[4], whole(lease.at + tonumber(ARGV[6])), id)
    end
end

return {
    verdict, whole(at), state_text, live, overdue, status, limits_text, key_text, held, deadline,
}
