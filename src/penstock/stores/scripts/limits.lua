-- The rules of the three kinds of limit: what may be charged when, and what comes back, as in penstock/_core/batch.py
-- and entries.py.

local stopped, any_stopped, verdicts, said = {}, false, {}, 0

local function say(value)
  said = said + 1
  verdicts[said] = value
end

-- How far each bucket may fill up before a call has to wait; of anything else, and where there is a pause, it is not
-- that simple.
local free_until = {}
for limit = 1, limits do
  local a, b = first[limit], second[limit]
  local plain = kind[limit] == BUCKET and pause[limit] == 0 and #booked[row_of[limit]] == 0
  free_until[limit] = plain and b + 0.5e-6 * a + 1e-12 * b or -1
end

local function total(log)
  local sum = 0
  for i = 1, #log do sum = sum + log[i][3] end
  return sum
end

local function earlier(one, other) return one[1] < other[1] end

local function add(log, ends, of, amount)  -- in order of their ends; an owner's charges of one moment are one entry
  local at = #log + 1
  while at > 1 and log[at - 1][1] > ends do at = at - 1 end
  for i = at - 1, 1, -1 do
    local entry = log[i]
    if entry[1] < ends then break end
    if entry[2] == of then
      entry[3] = entry[3] + amount
      return
    end
  end
  table.insert(log, at, {ends, of, amount})
end

local function wait_of(limit, amount)  -- seconds until `amount` could be charged
  local k, a, b = kind[limit], first[limit], second[limit]
  if k == BUCKET then
    local need = amount
    if third[limit] ~= 0 then need = min(amount, b) end
    local over = used[limit] + need - b
    if over > 0.5e-6 * a + 1e-12 * b then return over / a end
    return 0
  elseif k == CALENDAR then
    if now >= what[limit] then return 1e-6 end
    local most, ends, later = a * ROUNDING - amount, what[limit], entries[limit][1]
    if used[limit] <= most then return 0 end
    if later and later[1] == third[limit] and later[3] > most then ends = later[1] end
    return (ends - now) / 1e6
  end
  local log = entries[limit]
  local over = total(log) + amount - a * ROUNDING
  if over <= 0 then return 0 end
  if third[limit] ~= RENEWED then
    for i = 1, #log do
      over = over - log[i][3]
      if over <= 0 then return (log[i][1] - now) / 1e6 end
    end
  end
  return huge
end

local function charge(limit, amount, after)  -- at the moment now + after; returns the receipt
  local k, a = kind[limit], first[limit]
  last[limit] = max(last[limit], after)
  if k == BUCKET then
    used[limit] = max(used[limit], after * a) + amount
    what[limit] = what[limit] + amount
    return what[limit]
  elseif k == CALENDAR then
    used[limit] = used[limit] + amount
    return what[limit]
  end
  local log, ends = entries[limit], now + ceil((after + second[limit]) * 1e6)
  if third[limit] == RENEWED then
    for i = 1, #log do
      if log[i][2] == owner then
        local entry = table.remove(log, i)
        add(log, max(entry[1], ends), owner, entry[3] + amount)
        return ends
      end
    end
  end
  add(log, ends, owner, amount)
  if third[limit] == LOG and #log > LONGEST_LOG then
    local merged = {}
    for i = 1, #log - 1, 2 do
      merged[#merged + 1] = {log[i + 1][1], log[i + 1][2], log[i][3] + log[i + 1][3]}
    end
    if #log % 2 == 1 then merged[#merged + 1] = log[#log] end
    entries[limit] = merged
  end
  return ends
end

local function charged_since(limit, receipt)  -- what a bucket charged after that receipt, and was not given back
  local log, back = entries[limit], 0
  for i = 1, #log do
    if log[i][1] > receipt then back = back + log[i][3] end
  end
  return max(0, what[limit] - receipt - back)
end

local function remember(refunds, receipt, amount)
  local at = #refunds + 1
  while at > 1 and refunds[at - 1][1] > receipt do at = at - 1 end
  if at > 1 and refunds[at - 1][1] == receipt then
    refunds[at - 1][3] = refunds[at - 1][3] + amount
    return
  end
  table.insert(refunds, at, {receipt, 0, amount})
  if #refunds > REFUNDS then
    refunds[1][3] = refunds[1][3] + refunds[2][3]
    table.remove(refunds, 2)
  end
end

local function release(log, amount, receipt, mode)  -- of the owner's entries: the one of that receipt, or else the first
  local begin, stop, rest = 1, #log, {}
  for i = 1, #log do
    if log[i][2] == owner and (mode == RENEWED or log[i][1] >= receipt) then begin, stop = i, i break end
  end
  for i = begin, stop do
    if log[i][2] == owner then
      local taken = min(amount, log[i][3])
      log[i][3], amount = log[i][3] - taken, amount - taken
    end
  end
  for i = 1, #log do
    if log[i][3] > 0 then rest[#rest + 1] = log[i] end
  end
  return rest
end

local function is_places(limit) return kind[limit] == WINDOW and third[limit] ~= LOG end

local function seconds_of(limit)  -- in which one unit flows in
  if kind[limit] == WINDOW and third[limit] == LOG then return second[limit] / first[limit] end
  return 1 / first[limit]
end
