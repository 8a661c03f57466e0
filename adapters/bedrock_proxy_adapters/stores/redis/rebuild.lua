-- Count the current day and month again from the ledger and the open leases.
-- KEYS: gate, leases, rows, then the ledger of each day of a month
-- ARGV: time, that month, its first day, how far ahead a clock may be, whether one that is further
--       is put back (1) or left (0)
-- Returns 'done', or 'month' and the month whose ledger it needs.

local state = load_state(redis.call('GET', KEYS[1]))
local now = time_of(ARGV[1])
local bound = now + tonumber(ARGV[4])
if ARGV[5] == '1' and state.clock > bound then state = rolled(load_state(), now) end
local latest = now
local last = redis.call(
    'ZREVRANGEBYSCORE', KEYS[3], whole(bound), '-inf', 'WITHSCORES', 'LIMIT', 0, 1)
if last[2] then latest = math.max(latest, tonumber(last[2])) end
local leases = redis.call('HVALS', KEYS[2])
for i, text in ipairs(leases) do
    leases[i] = load_lease(text)
    if leases[i].at <= bound then latest = math.max(latest, leases[i].at) end
end
state = rolled(state, latest)
if state.month ~= tonumber(ARGV[2]) then return {'month', whole(state.month)} end

state.day_requests, state.day_tokens, state.day_cost = 0, 0, 0
state.month_requests, state.month_tokens, state.month_cost = 0, 0, 0
for i = 4, #KEYS do
    local rows = redis.call('HVALS', KEYS[i])
    local tokens, cost = 0, 0
    for _, text in ipairs(rows) do
        local of_tokens, of_cost = string.match(text, '^%[%d+,%w+,"%a+",(%-?%d+),(%-?%d+)%]')
        tokens, cost = tokens + tonumber(of_tokens), cost + tonumber(of_cost)
    end
    recount(state, (tonumber(ARGV[3]) + i - 4) * DAY, #rows, tokens, cost)
end
for _, lease in ipairs(leases) do
    recount(state, lease.at, 1, lease.tokens, lease.cost)
end
redis.call('SET', KEYS[1], dump_state(state))
return {'done'}
