-- The rules of bedrock_proxy.buckets, admission and accounts, in Redis' own tongue. Every script
-- begins with these lines. The decision must be the Python one to the last unit; tests compare
-- the two on random stories.
--
-- Numbers here are doubles: whole numbers are exact up to 2^53, and no further. No reservation
-- brings a counter of tokens beyond that (bedrock_proxy.admission.MOST_COUNTED); one of money
-- stops there.

local MINUTE = 60000
local DAY = 86400000
local TOP = 9007199254740992
local MAX_LOWS = 16

-- `tostring` would round to 14 digits.
local function whole(n)
    if n > TOP then n = TOP elseif n < -TOP then n = -TOP end
    return string.format('%.0f', n + 0)
end

-- n // d of whole numbers, n >= 0: a quotient of doubles may round up to the next whole one.
local function over(n, d)
    return (n - math.fmod(n, d)) / d
end

local function over_up(n, d)
    return over(n, d) + (math.fmod(n, d) > 0 and 1 or 0)
end

-- The time of the operation: this server's clock, unless the caller brings one.
local function time_of(given)
    if given ~= '' then return tonumber(given) end
    local now = redis.call('TIME')
    return tonumber(now[1]) * 1000 + over(tonumber(now[2]), 1000)
end

local function day_of(at)
    return over(at, DAY)
end

-- Months since year 0 of a day since the epoch, in the proleptic Gregorian calendar: years begin
-- in March, so that the leap day is the last one.
local function month_of_day(days)
    local z = days + 719468
    local era = math.floor(z / 146097)
    local doe = z - era * 146097
    local yoe = math.floor(
        (doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
    local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
    local mp = math.floor((5 * doy + 2) / 153)
    local month = mp < 10 and mp + 3 or mp - 9
    local year = yoe + era * 400 + (month <= 2 and 1 or 0)
    return year * 12 + month - 1
end

-- --- buckets: {rate, since, units, seq, lows = {{seq, level}, ...}} ---------------------------

local function level(bucket, now)
    return math.max(0, bucket.units * MINUTE - (now - bucket.since) * bucket.rate)
end

local function bucket_of(rate, since, units, seq, lows)
    return {rate = rate, since = since, units = units, seq = seq, lows = lows}
end

local function drained(bucket, rate, now)
    if bucket.since == now and bucket.rate == rate then return bucket end
    local left = level(bucket, now)
    if left == 0 then
        if bucket.since ~= now then return bucket_of(rate, now, 0, 0, {}) end
        return bucket_of(rate, bucket.since, bucket.units, bucket.seq, bucket.lows)
    end
    if bucket.rate == rate then return bucket end
    if bucket.since == now then
        return bucket_of(rate, bucket.since, bucket.units, bucket.seq, bucket.lows)
    end
    return bucket_of(rate, now, over_up(left, MINUTE), 0, {})
end

local function shortened(lows)
    if #lows <= MAX_LOWS then return lows end
    local nearest, gap = 2, lows[2][2] - lows[1][2]
    for i = 3, #lows do
        if lows[i][2] - lows[i - 1][2] < gap then
            nearest, gap = i, lows[i][2] - lows[i - 1][2]
        end
    end
    local kept = {}
    for i = 1, nearest - 2 do kept[#kept + 1] = lows[i] end
    kept[#kept + 1] = {lows[nearest][1], lows[nearest - 1][2]}
    for i = nearest + 1, #lows do kept[#kept + 1] = lows[i] end
    return kept
end

local function take(bucket, units, now)
    local lows, seq = bucket.lows, bucket.seq + 1
    if bucket.seq > 0 then
        local low = over(level(bucket, now), MINUTE)
        local last = #lows
        while last > 0 and lows[last][2] >= low do last = last - 1 end
        local kept = {}
        for i = 1, last do kept[i] = lows[i] end
        kept[last + 1] = {seq, low}
        lows = shortened(kept)
    end
    local after = bucket_of(bucket.rate, bucket.since, bucket.units + units, seq, lows)
    return after, {units, bucket.since, seq}
end

-- The bucket after, and what was taken; nil where it would overflow.
local function try_take(bucket, rate, burst, units, now)
    if not rate or not burst then return bucket, {0, 0, 0} end
    if rate == 0 or units > burst then return nil end
    bucket = drained(bucket, rate, now)
    if (bucket.units + units - burst) * MINUTE - (now - bucket.since) * rate > 0 then return nil end
    return take(bucket, units, now)
end

local function refund(bucket, taken, units, now)
    local of_units, since, seq = taken[1], taken[2], taken[3]
    if of_units == 0 or bucket.since ~= since or seq > bucket.seq then return bucket end
    units = math.min(units, of_units, over(level(bucket, now), MINUTE))
    for _, mark in ipairs(bucket.lows) do
        if mark[1] > seq then
            units = math.min(units, mark[2])
            break
        end
    end
    if units <= 0 then return bucket end
    local kept = {}
    for _, mark in ipairs(bucket.lows) do
        local low = mark[1] > seq and mark[2] - units or mark[2]
        while #kept > 0 and kept[#kept][2] >= low do kept[#kept] = nil end
        kept[#kept + 1] = {mark[1], low}
    end
    return bucket_of(bucket.rate, bucket.since, bucket.units - units, bucket.seq, kept)
end

-- --- a customer's state, in the words of dump_state --------------------------------------------

local FRESH = '[0,[0,0,0,0,[]],[0,0,0,0,[]],0,0,0,0,23640,0,0,0]'

local function load_bucket(b)
    return bucket_of(b[1], b[2], b[3], b[4], b[5])
end

local function load_state(text)
    local s = cjson.decode(text or FRESH)
    return {
        clock = s[1], requests = load_bucket(s[2]), tokens = load_bucket(s[3]),
        day = s[4], day_requests = s[5], day_tokens = s[6], day_cost = s[7],
        month = s[8], month_requests = s[9], month_tokens = s[10], month_cost = s[11],
    }
end

local function dump_bucket(b)
    local lows = {}
    for i, mark in ipairs(b.lows) do
        lows[i] = '[' .. whole(mark[1]) .. ',' .. whole(mark[2]) .. ']'
    end
    return '[' .. whole(b.rate) .. ',' .. whole(b.since) .. ',' .. whole(b.units) .. ','
        .. whole(b.seq) .. ',[' .. table.concat(lows, ',') .. ']]'
end

local function dump_state(s)
    return '[' .. table.concat({
        whole(s.clock), dump_bucket(s.requests), dump_bucket(s.tokens),
        whole(s.day), whole(s.day_requests), whole(s.day_tokens), whole(s.day_cost),
        whole(s.month), whole(s.month_requests), whole(s.month_tokens), whole(s.month_cost),
    }, ',') .. ']'
end

local function rolled(state, at)
    if at <= state.clock then return state end
    local now = {}
    for name, value in pairs(state) do now[name] = value end
    now.clock = at
    now.day = day_of(at)
    if now.day ~= state.day then
        now.day_requests, now.day_tokens, now.day_cost = 0, 0, 0
        now.month = month_of_day(now.day)
        if now.month ~= state.month then
            now.month_requests, now.month_tokens, now.month_cost = 0, 0, 0
        end
    end
    return now
end

local function recount(state, at, requests, tokens, cost)
    local day = day_of(at)
    local today = day == state.day
    if today then
        state.day_requests = state.day_requests + requests
        state.day_tokens = state.day_tokens + tokens
        state.day_cost = state.day_cost + cost
    end
    if today or month_of_day(day) == state.month then
        state.month_requests = state.month_requests + requests
        state.month_tokens = state.month_tokens + tokens
        state.month_cost = state.month_cost + cost
    end
    return state
end

-- --- leases: figures in the first line, the request as it was sent in the second ---------------

local function head_of(text)
    return cjson.decode(string.sub(text, 1, string.find(text, '\n', 1, true) - 1))
end

local function load_lease(text)
    local h = head_of(text)
    return {at = h[1], tokens = h[2], cost = h[3], of_requests = h[4], of_tokens = h[5]}
end

local function dump_taken(taken)
    return '[' .. whole(taken[1]) .. ',' .. whole(taken[2]) .. ',' .. whole(taken[3]) .. ']'
end

local function dump_lease(lease, request)
    return '[' .. whole(lease.at) .. ',' .. whole(lease.tokens) .. ',' .. whole(lease.cost) .. ','
        .. dump_taken(lease.of_requests) .. ',' .. dump_taken(lease.of_tokens) .. ']\n' .. request
end
